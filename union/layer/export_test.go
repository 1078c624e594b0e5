package layer

// EncodeWith is Encode with a number of cores.
var EncodeWith = encodeWith
