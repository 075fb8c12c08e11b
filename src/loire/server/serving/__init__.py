"""The served model, and how a route runs requests in its engine."""
