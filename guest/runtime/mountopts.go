//go:build linux

package runtime

import (
	"strings"

	"dhow/guest/runtime/enter"
	"dhow/internal/errdefs"

	"golang.org/x/sys/unix"
)

// mountOption is what a word of a mount's options means: for mount(2) the MS
// flag, for binds the attribute; clear marks words that take it away.
type mountOption struct {
	ms, attr uint64
	clear    bool
}

// atime attributes are one field, not bits.
const atimeMask = unix.MOUNT_ATTR__ATIME

var mountOptions = map[string]mountOption{
	"defaults":      {},
	"ro":            {ms: unix.MS_RDONLY, attr: unix.MOUNT_ATTR_RDONLY},
	"rw":            {ms: unix.MS_RDONLY, attr: unix.MOUNT_ATTR_RDONLY, clear: true},
	"nosuid":        {ms: unix.MS_NOSUID, attr: unix.MOUNT_ATTR_NOSUID},
	"suid":          {ms: unix.MS_NOSUID, attr: unix.MOUNT_ATTR_NOSUID, clear: true},
	"nodev":         {ms: unix.MS_NODEV, attr: unix.MOUNT_ATTR_NODEV},
	"dev":           {ms: unix.MS_NODEV, attr: unix.MOUNT_ATTR_NODEV, clear: true},
	"noexec":        {ms: unix.MS_NOEXEC, attr: unix.MOUNT_ATTR_NOEXEC},
	"exec":          {ms: unix.MS_NOEXEC, attr: unix.MOUNT_ATTR_NOEXEC, clear: true},
	"nodiratime":    {ms: unix.MS_NODIRATIME, attr: unix.MOUNT_ATTR_NODIRATIME},
	"diratime":      {ms: unix.MS_NODIRATIME, attr: unix.MOUNT_ATTR_NODIRATIME, clear: true},
	"noatime":       {ms: unix.MS_NOATIME, attr: unix.MOUNT_ATTR_NOATIME},
	"atime":         {ms: unix.MS_NOATIME, attr: unix.MOUNT_ATTR_NOATIME, clear: true},
	"strictatime":   {ms: unix.MS_STRICTATIME, attr: unix.MOUNT_ATTR_STRICTATIME},
	"nostrictatime": {ms: unix.MS_STRICTATIME, attr: unix.MOUNT_ATTR_STRICTATIME, clear: true},
	"relatime":      {ms: unix.MS_RELATIME},
	"norelatime":    {ms: unix.MS_RELATIME, clear: true},
	"nosymfollow":   {ms: unix.MS_NOSYMFOLLOW, attr: unix.MOUNT_ATTR_NOSYMFOLLOW},
	"symfollow":     {ms: unix.MS_NOSYMFOLLOW, attr: unix.MOUNT_ATTR_NOSYMFOLLOW, clear: true},
	"sync":          {ms: unix.MS_SYNCHRONOUS},
	"async":         {ms: unix.MS_SYNCHRONOUS, clear: true},
	"dirsync":       {ms: unix.MS_DIRSYNC},
	"mand":          {ms: unix.MS_MANDLOCK},
	"nomand":        {ms: unix.MS_MANDLOCK, clear: true},
	"silent":        {ms: unix.MS_SILENT},
	"loud":          {ms: unix.MS_SILENT, clear: true},
	"iversion":      {ms: unix.MS_I_VERSION},
	"noiversion":    {ms: unix.MS_I_VERSION, clear: true},
	"lazytime":      {ms: unix.MS_LAZYTIME},
	"nolazytime":    {ms: unix.MS_LAZYTIME, clear: true},
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// planMount translates a mount of a spec or of a snapshot.
func planMount(typ, source, target string, options []string, dir string) (enter.Mount, error) {
	m := enter.Mount{Kind: enter.MountFS, Type: typ, Source: source, Target: target, Dir: dir}
	if typ == "bind" || typ == "rbind" {
		m.Kind = enter.MountBind
	}
	if typ == "rbind" {
		m.Flags |= enter.Recursive
	}
	var data []string
	for _, o := range options {
		if p, ok := propagations[o]; ok {
			m.Propagation = p
			continue
		}
		if o == "bind" || o == "rbind" {
			m.Kind = enter.MountBind
			if o == "rbind" {
				m.Flags |= enter.Recursive
			}
			continue
		}
		if opt, ok := mountOptions[o]; ok {
			if opt.clear {
				m.MS &^= opt.ms
			} else {
				m.MS |= opt.ms
			}
			applyAttr(opt, &m.AttrSet, &m.AttrClear)
			continue
		}
		if opt, ok := mountOptions[strings.TrimPrefix(o, "r")]; ok && strings.HasPrefix(o, "r") && opt.attr != 0 {
			applyAttr(opt, &m.RecSet, &m.RecClear) // "rro" and its kind: for all submounts too
			continue
		}
		switch o {
		case "tmpcopyup", "idmap", "ridmap":
			return m, errdefs.New(errdefs.Unimplemented, "mount option %q of %s is not supported", o, target)
		}
		data = append(data, o)
	}
	m.Data = strings.Join(data, ",")
	if m.Kind == enter.MountBind {
		if len(data) > 0 {
			return m, errdefs.New(errdefs.Invalid, "bind mount on %s: unknown option %q", target, data[0])
		}
		m.MS = 0
	} else if len(m.Data) >= 4096 {
		// mount(2) takes one page.
		return m, errdefs.New(errdefs.Invalid, "mount on %s: the options are longer than 4095 bytes", target)
	}
	return m, nil
}

// applyAttr adds the option to the attributes to set and to clear.
func applyAttr(o mountOption, set, clr *uint64) {
	switch {
	case o.attr == 0 && o.ms == unix.MS_RELATIME && !o.clear, o.attr&atimeMask != 0 && o.clear:
		*set &^= atimeMask // relatime is the zero of the field
		*clr |= atimeMask
	case o.attr&atimeMask != 0:
		*set = *set&^atimeMask | o.attr
		*clr |= atimeMask
	case o.clear:
		*set &^= o.attr
		*clr |= o.attr
	default:
		*set |= o.attr
		*clr &^= o.attr
	}
}
