//go:build linux

package enter

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxUserFile bounds what is read of /etc/passwd and /etc/group, in bytes.
const maxUserFile = 32 << 20

// lookupUser fills UID, GID and Gids from the container's own files, and HOME
// if the environment lacks it.
func (c *Config) lookupUser() *failure {
	passwd, f := readUserFile("/etc/passwd")
	if f != nil {
		return f
	}
	if c.User == "" && len(c.Groups) == 0 {
		// Only HOME is wanted.
		u, code, _ := resolveUser(utoa(c.UID), nil, passwd, "")
		if code != 0 {
			u.home = "/"
		}
		c.setHome(u.home)
		return nil
	}
	group, f := readUserFile("/etc/group")
	if f != nil {
		return f
	}
	spec := c.User
	if spec == "" {
		spec = utoa(c.UID) + ":" + utoa(c.GID)
	}
	u, code, name := resolveUser(spec, c.Groups, passwd, group)
	if code != 0 {
		return &failure{op: "look up user", path: name, code: code}
	}
	if c.User == "" {
		c.Gids = append(c.Gids, u.gids[1:]...)
	} else {
		c.UID, c.GID, c.Gids = u.uid, u.gid, u.gids
	}
	c.setHome(u.home)
	return nil
}

// setHome adds HOME unless the environment has it with a value.
func (c *Config) setHome(home string) {
	for i, kv := range c.Env {
		if len(kv) >= 5 && kv[:5] == "HOME=" {
			if len(kv) == 5 {
				c.Env[i] = "HOME=" + home
			}
			return
		}
	}
	env := list[string](scratch, len(c.Env)+1)
	copy(env, c.Env)
	env[len(c.Env)] = "HOME=" + home
	c.Env = env
}

// readUserFile reads a file of the container's, "" if there is none. What is
// no regular file (a FIFO would block for ever) or reached through a link of
// /proc counts as none.
func readUserFile(path string) (string, *failure) {
	fd, e := openat2(int(int32(cwdFD())), path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0, unix.RESOLVE_NO_MAGICLINKS)
	if e != 0 {
		return "", nil
	}
	defer closefd(fd)
	var st unix.Stat_t
	if e := fstat(fd, &st); e != 0 || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", nil
	}
	if st.Size > maxUserFile {
		return "", fail("read", path, unix.EFBIG)
	}
	b := scratch.bytes(int(st.Size) + 1)[:0]
	for len(b) < maxUserFile {
		if len(b) == cap(b) {
			b = append(make([]byte, 0, 2*cap(b)), b...)
		}
		n, e := read(fd, b[len(b):cap(b)])
		if e != 0 {
			return "", fail("read", path, e)
		}
		if n == 0 {
			break
		}
		b = b[:len(b)+n]
	}
	return unsafe.String(unsafe.SliceData(b), len(b)), nil
}
