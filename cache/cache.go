// Package cache keeps verified bytes on the local disk. It knows digests, units and files; it knows nothing of images, tar or registries.
//
// A [Store] is a directory that several processes may use at once. For every
// layer it holds a [Pack] (the unpacked bytes, a sparse file, and a map of the
// units that are there) and an index (opaque to this package). Small named
// records (manifests, configs, tag → digest) live beside them.
//
// Nothing unverified can be read back: a unit counts as there only after its
// sum matched, a whole pack only after [Writer.Commit].
package cache
