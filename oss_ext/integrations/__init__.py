"""Other people's pipelines and repositories. Each module imports what it serves only when it is used."""
