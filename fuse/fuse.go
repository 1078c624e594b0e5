// Package fuse connects a union to the kernel on go-fuse's raw API: handles, errno, mount options, caching.
//
// It is the only package that knows go-fuse.
package fuse
