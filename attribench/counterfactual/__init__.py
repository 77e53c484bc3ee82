"""What the model makes once a query's strongest proponents are gone: retraining, regenerating, comparing."""
