//go:build linux

package snapshot

import (
	"path/filepath"
	"strconv"
	"strings"
)

// mounts returns the mounts of an active snapshot or a view, whose ancestors
// are given nearest first.
func (o *Overlay) mounts(r record, chain []uint64) []Mount {
	own := filepath.Join(o.dir(r.id), "fs")
	switch {
	case len(chain) == 0 && r.kind == View:
		return []Mount{{Type: "bind", Source: own, Options: []string{"ro", "rbind"}}}
	case len(chain) == 0:
		return []Mount{{Type: "bind", Source: own, Options: []string{"rw", "rbind"}}}
	case len(chain) == 1 && r.kind == View:
		// overlayfs wants at least two layers.
		return []Mount{{Type: "bind", Source: filepath.Join(o.dir(chain[0]), "fs"), Options: []string{"ro", "rbind"}}}
	}
	var opts []string
	if r.kind == Active {
		id := strconv.FormatUint(r.id, 10)
		opts = append(opts, "workdir="+id+"/work", "upperdir="+id+"/fs")
		if volatile(r) {
			opts = append(opts, "volatile")
		}
	}
	opts = append(opts, o.options...)
	var lower strings.Builder
	lower.WriteString("lowerdir=")
	for i, id := range chain {
		if i > 0 {
			lower.WriteByte(':')
		}
		lower.WriteString(strconv.FormatUint(id, 10))
		lower.WriteString("/fs")
	}
	opts = append(opts, lower.String())
	return []Mount{{Type: "overlay", Source: "overlay", Options: opts, Dir: o.snapshots()}}
}

func volatile(r record) bool {
	_, ok := r.labels[LabelVolatile]
	return ok
}
