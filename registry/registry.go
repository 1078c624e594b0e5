// Package registry finds an image by its reference and moves blobs: ranged reads, uploads, cross-repository mounts.
//
// It is the only package that knows go-containerregistry. References name a
// registry, an OCI layout or an archive; all of them are opened by [Open] and
// give the same [Image]. [Push] writes a new image whose base blobs stay where
// they are.
package registry
