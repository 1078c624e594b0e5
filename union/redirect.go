package union

import (
	"fmt"
	"path"
	"strings"

	"github.com/layerfs/layerfs/union/layer"
)

// maxRedirects bounds the redirects that a merge follows. overlayfs writes one for each
// rename of a directory; but one leads through others, and layers made for it could
// have a path of theirs mean a walk of astronomical length.
const maxRedirects = 1 << 20

// redirected are the directories that a renamed directory has in the layers below its own
// (Documentation/filesystems/overlayfs.rst, "Redirects"): those that were called target,
// from the root or in the same directory, which is merged from dirs.
func (v *view) redirected(s source, target string, dirs []source) []source {
	if v.redirects++; v.redirects > maxRedirects {
		if v.redirects == maxRedirects+1 {
			v.defects = append(v.defects, layer.Defect{Path: target, Reason: fmt.Sprintf("layer %d: more than %d redirects", s.layer+1, maxRedirects)})
		}
		return nil
	}
	var from []source
	if strings.HasPrefix(target, "/") {
		from = v.resolve(s.layer, clean(path.Clean(target)))
	} else {
		from = v.step(below(dirs, s.layer), target)
	}
	if len(from) == 0 || !v.isDir(from[0]) {
		v.defects = append(v.defects, layer.Defect{Path: target, Reason: fmt.Sprintf("layer %d: redirect to a directory that no layer below has", s.layer+1)})
		return nil
	}
	return from
}

// below are those of dirs, the topmost first, that are of layers below top.
func below(dirs []source, top int) []source {
	for i, d := range dirs {
		if d.layer < top {
			return dirs[i:]
		}
	}
	return nil
}
