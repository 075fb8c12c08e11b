"""/v1/responses: answers that can be retrieved and gone on from."""
