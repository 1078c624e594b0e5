package report

// Treemap is treemap, and what a test can look at.
var Treemap = treemap

// The size of the picture.
const (
	MapWidth  = mapWidth
	MapHeight = mapHeight
)
