"""The ground of all routes: errors, bodies, streams of events, and what is known of a call."""
