// Command layerfs mounts container images as directories.
package main

func main() {}
