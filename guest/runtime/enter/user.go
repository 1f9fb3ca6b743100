package enter

import "math"

// identity of a user as looked up in a container's own files.
type userInfo struct {
	uid, gid uint64
	gids     []uint64 // supplementary, gid first
	home     string
}

// resolveUser answers docker's forms name, uid, name:group, uid:gid and their
// mixtures, and further groups, from the text of /etc/passwd and /etc/group
// (either may be missing), by the rules of github.com/moby/sys/user: a number
// is always an id, the first matching line counts, supplementary groups come
// only with an implicit group, lines that are malformed count as zeros.
// Otherwise code is CodeNoUser, CodeNoGroup or CodeBadUser, and name says who.
func resolveUser(spec string, groups []string, passwd, group string) (u userInfo, code uint64, name string) {
	userArg, rest := cut(spec, ':')
	groupArg, _ := cut(rest, ':')
	uidArg, isUID, bad := numeric(userArg)
	if bad {
		return u, CodeBadUser, userArg
	}
	gidArg, isGID, bad := numeric(groupArg)
	if bad {
		return u, CodeBadUser, groupArg
	}
	u.home = "/"
	var matched string
	found := false
	for line, text := nextLine(passwd); line != "" || text != ""; line, text = nextLine(text) {
		if line = trim(line); line == "" {
			continue
		}
		f := fields(line)
		uid := atoi(f[2])
		switch {
		case userArg == "":
			found = uid == 0
		case isUID:
			found = uid == int64(uidArg)
		default:
			found = f[0] == userArg
		}
		if found {
			gid := atoi(f[3])
			if !inRange(uid) || !inRange(gid) {
				return u, CodeBadUser, f[0]
			}
			matched, u.uid, u.gid, u.home = f[0], uint64(uid), uint64(gid), f[5]
			break
		}
	}
	if !found && userArg != "" {
		if !isUID {
			return u, CodeNoUser, userArg
		}
		u.uid = uidArg
	}
	more := list[uint64](scratch, 64)[:0]
	if groupArg != "" || matched != "" {
		found := false
		for line, text := nextLine(group); line != "" || text != ""; line, text = nextLine(text) {
			if line = trim(line); line == "" || line[0] == '#' {
				continue
			}
			f := fields(line)
			gid := atoi(f[2])
			switch {
			case groupArg == "":
				if inRange(gid) && contains(f[3], matched) {
					more = append(more, uint64(gid))
				}
				continue
			case isGID:
				found = gid == int64(gidArg)
			default:
				found = f[0] == groupArg
			}
			if found {
				if !inRange(gid) {
					return u, CodeBadUser, f[0]
				}
				u.gid = uint64(gid)
				break
			}
		}
		if groupArg != "" && !found {
			if !isGID {
				return u, CodeNoGroup, groupArg
			}
			u.gid = gidArg
		}
	}
	u.gids = append(append(list[uint64](scratch, 64)[:0], u.gid), more...)
	for _, g := range groups {
		gid, isGID, bad := numeric(g)
		if bad {
			return u, CodeBadUser, g
		}
		if !isGID {
			found := false
			for line, text := nextLine(group); line != "" || text != ""; line, text = nextLine(text) {
				if line = trim(line); line == "" || line[0] == '#' {
					continue
				}
				if f := fields(line); f[0] == g {
					n := atoi(f[2])
					if !inRange(n) {
						return u, CodeBadUser, g
					}
					gid, found = uint64(n), true
					break
				}
			}
			if !found {
				return u, CodeNoGroup, g
			}
		}
		u.gids = append(u.gids, gid)
	}
	return u, 0, ""
}

func inRange(id int64) bool { return id >= 0 && id <= math.MaxInt32 }

// numeric parses an id as given by the user. bad is set for numbers out of
// range; what is not a number is a name.
func numeric(s string) (id uint64, ok, bad bool) {
	v, ok := parseInt(s)
	if !ok {
		return 0, false, false
	}
	if !inRange(v) {
		return 0, true, true
	}
	return uint64(v), true, false
}

// atoi is 0 for what is not a number: misbehaving files are read as well as
// can be.
func atoi(s string) int64 {
	v, _ := parseInt(s)
	return v
}

// parseInt reads a decimal number with an optional sign; one that is too large
// comes out as the largest.
func parseInt(s string) (v int64, ok bool) {
	neg := false
	if s != "" && (s[0] == '-' || s[0] == '+') {
		neg, s = s[0] == '-', s[1:]
	}
	if s == "" {
		return 0, false
	}
	for i := range len(s) {
		d := int64(s[i]) - '0'
		if d < 0 || d > 9 {
			return 0, false
		}
		if v > (math.MaxInt64-d)/10 {
			v = math.MaxInt64
			continue
		}
		if v != math.MaxInt64 {
			v = v*10 + d
		}
	}
	if neg {
		v = -v
	}
	return v, true
}

// nextLine cuts the first line off text.
func nextLine(text string) (line, rest string) { return cut(text, '\n') }

func cut(s string, sep byte) (before, after string) {
	for i := range len(s) {
		if s[i] == sep {
			return s[:i], s[i+1:]
		}
	}
	return s, ""
}

// fields splits a line of passwd or group at its colons.
func fields(line string) (f [7]string) {
	for i := range f {
		f[i], line = cut(line, ':')
		if line == "" {
			break
		}
	}
	return f
}

// contains reports whether the comma-separated list holds name.
func contains(list, name string) bool {
	for list != "" {
		var e string
		if e, list = cut(list, ','); e == name {
			return true
		}
	}
	return false
}

func trim(s string) string {
	for s != "" && space(s[0]) {
		s = s[1:]
	}
	for s != "" && space(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s
}

func space(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }
