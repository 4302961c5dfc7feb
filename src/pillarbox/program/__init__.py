"""The running program: what happens to a message between the server and the targets, and the life of the process."""
