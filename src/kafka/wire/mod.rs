//! Our own connections on the `kafka-protocol` codecs (to be written).
