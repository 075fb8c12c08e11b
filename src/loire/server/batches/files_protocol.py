"""Bodies of /v1/files."""

from typing import Literal

from pydantic import BaseModel

from loire.server.batches.file_store import StoredFile

Purpose = Literal["batch", "batch_output"]


class File(BaseModel):
    """A file. created_at: Unix time."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Purpose
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, file: StoredFile) -> "File":
        """The file as the API shows it."""
        return cls.model_validate(
            {
                "id": file.id,
                "bytes": file.num_bytes,
                "created_at": file.created_at,
                "filename": file.filename,
                "purpose": file.purpose,
            }
        )


class FileList(BaseModel):
    """Some of the files; after=last_id asks for those that follow."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


UPLOAD_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "additionalProperties": False,
                    "properties": {
                        "purpose": {"type": "string", "enum": ["batch"]},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}
"""For the API's description: FastAPI cannot see what the route reads by itself."""
