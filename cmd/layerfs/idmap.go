package main

import (
	"github.com/layerfs/layerfs/union"
	"github.com/spf13/pflag"
)

// idFlags are the flags of mount that say who the image's users are on the host.
type idFlags struct{ uids, gids []string }

func (f *idFlags) add(flags *pflag.FlagSet) {
	const usage = " of the image from C on are H, H+1, … of the host, N in all, as C:H:N; others show as nobody's. A commit has the image's again"
	flags.StringArrayVar(&f.uids, "uid-map", nil, "users"+usage)
	flags.StringArrayVar(&f.gids, "gid-map", nil, "groups"+usage)
}

func (f *idFlags) parse() (m union.IDMap, err error) {
	if m.UIDs, err = parseIDs("--uid-map", f.uids); err != nil {
		return m, err
	}
	m.GIDs, err = parseIDs("--gid-map", f.gids)
	return m, err
}

func parseIDs(flag string, list []string) (ids union.IDs, err error) {
	for _, s := range list {
		r, err := union.ParseIDRange(s)
		if err != nil {
			return nil, usageError(flag + ": " + err.Error())
		}
		ids = append(ids, r)
	}
	if err := ids.Check(); err != nil {
		return nil, usageError(flag + ": " + err.Error())
	}
	return ids, nil
}
