"""The revisions: one that was released is never changed."""
