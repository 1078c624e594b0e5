// Package layertest turns a text archive into a layer blob of every format and holds the conformance suite that every format passes.
package layertest
