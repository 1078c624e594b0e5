// Package fuse connects a union to the kernel on go-fuse's raw API: handles, errno, mount options, caching.
//
// It is the only package that knows go-fuse. Every request is short: find the
// handle, one call to the union, translate the error (errno.go). Two kinds of
// mount differ in what the kernel must ask:
//
//   - read-only (readonly.go): nothing ever changes, so the kernel keeps names,
//     attributes, listings and pages, and opens files without asking;
//   - writable (file.go, dir.go): every open file and directory has a handle.
//     Names, attributes and pages are kept as well, since whatever changes them
//     comes through the kernel.
//
// A mount is made by the process itself or with the help of fusermount3, and
// handed to the library as a descriptor: the reason of a refusal is then ours
// to tell, and the mount can one day outlive the process.
//
// The server must never touch its own mount: it would wait for itself.
package fuse
