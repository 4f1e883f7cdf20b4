"""What crosses the link: schema, number formats, checksum. The only place that counts bytes."""

from fedlora.wire.codec import TensorSpec, all_finite, decode, encode, encoded_size, survives, tag_of
from fedlora.wire.records import from_record, record_size, to_record

__all__ = [
    "TensorSpec",
    "all_finite",
    "decode",
    "encode",
    "encoded_size",
    "from_record",
    "record_size",
    "survives",
    "tag_of",
    "to_record",
]
