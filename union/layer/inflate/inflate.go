// Package inflate decodes DEFLATE and gzip (RFC 1951, RFC 1952) with checkpoints: points in the middle of a stream at which decoding can start again.
//
// It knows nothing of tar or OCI.
package inflate
