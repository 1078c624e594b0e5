package layer

// EncodeWith is Encode with a number of cores.
var EncodeWith = encodeWith

// PackSize is how many bytes come out of l's blob.
func PackSize(l *Layer) int64 { return l.pack.Size() }
