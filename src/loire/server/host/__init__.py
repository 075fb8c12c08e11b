"""The application, its settings, the web page, and `serve`."""
