package main

// What --symlinks may be.
const (
	symlinksRaw     = "raw"
	symlinksContain = "contain"
	symlinksDeny    = "deny"

	symlinksUsage = "raw: as in the image; contain: a link that would leave the image reads as its target inside of it; deny: the kernel follows none (nosymfollow)"
)

// setSymlinks takes up --symlinks.
func (p *mountPlan) setSymlinks(how string) error {
	switch how {
	case symlinksRaw:
	case symlinksContain:
		if p.meta {
			return usageError("--symlinks contain does not go with --meta, whose links are those of the image")
		}
		p.contain = true
	case symlinksDeny:
		p.flags = append(p.flags, "nosymfollow")
	default:
		return usageError("--symlinks " + how + ": want raw, contain or deny")
	}
	return nil
}
