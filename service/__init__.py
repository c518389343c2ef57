"""The microservice around the model that learns."""
