//go:build linux

package enter

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	capSysAdmin = 21
	nullDevice  = 1<<8 | 3
)

// joined finishes what setup does for a new container: the process is in the
// namespaces of a running one.
func (c *Config) joined() *failure {
	unix.Umask(0)
	if c.Flags&Terminal != 0 {
		return c.openTerminal(nil)
	}
	return nil
}

// become sets identity, limits and confinement, waits for the agent's word,
// and executes the program.
func (c *Config) become() *failure {
	if f := c.newSession(); f != nil {
		return f
	}
	if c.Flags&LookupUser != 0 {
		if f := c.lookupUser(); f != nil {
			return f
		}
	}
	if f := c.streams(); f != nil {
		return f
	}
	noCwd := false
	if c.Cwd != "" {
		e := chdir(c.Cwd)
		if noCwd = e == unix.EACCES; e != 0 && !noCwd {
			return fail("chdir to cwd", c.Cwd, e)
		}
	}
	for i := range c.Rlimits {
		l := &c.Rlimits[i]
		lim := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		if _, e := sys6(unix.SYS_PRLIMIT64, 0, uintptr(l.Resource), uintptr(unsafe.Pointer(&lim)), 0, 0, 0); e != 0 {
			return fail("set resource limit", utoa(l.Resource), e)
		}
	}
	if c.Personality != 0 {
		if _, e := sys3(unix.SYS_PERSONALITY, uintptr(c.Personality-1), 0, 0); e != 0 {
			return fail("set personality", utoa(c.Personality-1), e)
		}
	}
	umask := 0o022
	if c.Flags&HasUmask != 0 {
		umask = int(c.Umask)
	}
	unix.Umask(umask)
	if f := c.identity(); f != nil {
		return f
	}
	if noCwd { // root may not enter it (a network file system), the user perhaps may
		if e := chdir(c.Cwd); e != 0 {
			return fail("chdir to cwd", c.Cwd, e)
		}
	}
	if f := checkCwd(); f != nil {
		return f
	}
	path, f := lookPath(c.Args[0], c.Env)
	if f != nil {
		return f
	}
	argv, envp := vector(c.Args), vector(c.Env)
	if _, e := sys3(unix.SYS_CLOSE_RANGE, 3, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); e != 0 {
		return fail("mark descriptors close-on-exec", "", e)
	}
	var noSignals [8]byte
	sys6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&noSignals)), 0, 8, 0, 0)
	if c.Flags&Exec == 0 {
		report(&Report{Kind: Ready})
		waitGo()
	}
	// From here on the filter may refuse anything but execve and write.
	if f := c.seccomp(); f != nil {
		return f
	}
	if c.Flags&Init != 0 {
		if f := c.init(); f != nil {
			return f
		}
	}
	e := execve(path, argv, envp)
	return &failure{op: "exec", path: path, err: e, code: CodeExec}
}

// streams gives the standard streams to the user, so that /dev/stdout can be
// opened by name. The null device is everybody's already.
func (c *Config) streams() *failure {
	for fd := range 3 {
		var st unix.Stat_t
		if e := fstat(fd, &st); e != 0 {
			return fail("stat standard stream", utoa(uint64(fd)), e)
		}
		if uint64(st.Uid) == c.UID || st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == nullDevice {
			continue
		}
		switch e := fchown(fd, c.UID, uint64(st.Gid)); e {
		case 0, unix.EINVAL, unix.EPERM, unix.EROFS, unix.ENOSYS: // not a thing with an owner that can change
		default:
			return fail("change the owner of standard stream", utoa(uint64(fd)), e)
		}
	}
	return nil
}

// checkCwd sees that the working directory can be reached from the root: a
// descriptor of a host directory, had one leaked, could have led outside.
func checkCwd() *failure {
	b := scratch.bytes(4096)
	n, e := sys3(unix.SYS_GETCWD, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0)
	if e != 0 || n == 0 || b[0] != '/' {
		return &failure{op: "check the working directory", err: unix.EPERM, code: CodeCwdEscaped}
	}
	return nil
}

// identity sets user, groups, capabilities and no_new_privs.
func (c *Config) identity() *failure {
	if c.UID != 0 {
		if e := prctl(unix.PR_SET_KEEPCAPS, 1, 0); e != 0 {
			return fail("keep capabilities", "", e)
		}
	}
	for i := range 64 {
		if c.CapDrop&(1<<i) != 0 {
			if e := prctl(unix.PR_CAPBSET_DROP, uintptr(i), 0); e != 0 {
				return fail("drop capability", utoa(uint64(i)), e)
			}
		}
	}
	gids := list[uint32](scratch, len(c.Gids)+1)
	for i, g := range c.Gids {
		gids[i] = uint32(g)
	}
	if _, e := sys3(unix.SYS_SETGROUPS, uintptr(len(c.Gids)), uintptr(unsafe.Pointer(&gids[0])), 0); e != 0 {
		return fail("set supplementary groups", "", e)
	}
	if _, e := sys3(unix.SYS_SETRESGID, uintptr(c.GID), uintptr(c.GID), uintptr(c.GID)); e != 0 {
		return fail("set group", utoa(c.GID), e)
	}
	if _, e := sys3(unix.SYS_SETRESUID, uintptr(c.UID), uintptr(c.UID), uintptr(c.UID)); e != 0 {
		return fail("set user", utoa(c.UID), e)
	}
	if c.UID != 0 {
		if e := prctl(unix.PR_SET_KEEPCAPS, 0, 0); e != 0 {
			return fail("keep capabilities", "", e)
		}
	}
	prm, eff := c.CapPrm, c.CapEff
	if len(c.Seccomp) > 0 && c.Flags&NoNewPrivs == 0 {
		// A filter is installed by no_new_privs or by this capability. execve
		// computes what the program gets from the bounding, inheritable and
		// ambient sets, so that it is gone there unless it is in those.
		prm |= 1 << capSysAdmin
		eff |= 1 << capSysAdmin
	}
	if f := capset(prm, eff, c.CapInh); f != nil {
		return f
	}
	if e := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); e != 0 {
		return fail("clear ambient capabilities", "", e)
	}
	for i := range 64 {
		if c.CapAmb&(1<<i) != 0 {
			if e := prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(i)); e != 0 {
				return fail("raise ambient capability", utoa(uint64(i)), e)
			}
		}
	}
	if c.Flags&NoNewPrivs != 0 {
		if e := prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0); e != 0 {
			return fail("set no_new_privs", "", e)
		}
	}
	return nil
}

func capset(prm, eff, inh uint64) *failure {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(eff), Permitted: uint32(prm), Inheritable: uint32(inh)},
		{Effective: uint32(eff >> 32), Permitted: uint32(prm >> 32), Inheritable: uint32(inh >> 32)},
	}
	_, e := sys3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data)), 0)
	return fail("set capabilities", "", e)
}

func (c *Config) seccomp() *failure {
	if len(c.Seccomp) == 0 {
		return nil
	}
	prog := struct {
		len    uint16
		filter unsafe.Pointer
	}{uint16(len(c.Seccomp) / 8), unsafe.Pointer(&c.Seccomp[0])}
	_, e := sys3(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(c.SeccompFlags), uintptr(unsafe.Pointer(&prog)))
	return fail("install the seccomp filter", "", e)
}

// sysctls writes kernel parameters. Those of namespaces follow the writing
// thread's, so the agent's /proc, which no container can have a hand in, does.
func (c *Config) sysctls() *failure {
	for _, p := range c.Sysctl {
		fd, e := openat2(int(int32(cwdFD())), "/proc/sys/"+p.Key, unix.O_WRONLY, 0, unix.RESOLVE_NO_SYMLINKS)
		if e != 0 {
			return fail("set sysctl", p.Key, e)
		}
		_, e = write(fd, []byte(p.Value))
		closefd(fd)
		if e != 0 {
			return fail("set sysctl", p.Key, e)
		}
	}
	return nil
}

// lookPath finds the program as Go's exec.LookPath does, which docker's users
// know the answers of: a name with a slash is taken as it is, others are
// searched for in $PATH of the container's environment.
func lookPath(name string, env []string) (string, *failure) {
	for i := range len(name) {
		if name[i] == '/' {
			if e := executable(name); e != 0 {
				return "", &failure{op: "exec", path: name, err: e, code: CodeExec}
			}
			return name, nil
		}
	}
	path := ""
	for _, kv := range env { // the first one counts, as for getenv
		if len(kv) >= 5 && kv[:5] == "PATH=" {
			path = kv[5:]
			break
		}
	}
	for start := 0; name != "" && start <= len(path); {
		end := start
		for end < len(path) && path[end] != ':' {
			end++
		}
		dir := path[start:end]
		start = end + 1
		// An empty or relative entry would find it relative to the working
		// directory, which exec.LookPath refuses.
		if dir == "" || dir[0] != '/' {
			continue
		}
		if p := dir + "/" + name; executable(p) == 0 {
			return p, nil
		}
	}
	return "", &failure{op: "exec", path: name, err: unix.ENOENT, code: CodeNotInPath}
}

// executable says why path cannot be executed, 0 if it can.
func executable(path string) errno {
	var st unix.Stat_t
	if _, e := sys6(unix.SYS_NEWFSTATAT, cwdFD(), uintptr(cstr(path)), uintptr(unsafe.Pointer(&st)), 0, 0, 0); e != 0 {
		return e
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	_, e := sys6(unix.SYS_FACCESSAT2, cwdFD(), uintptr(cstr(path)), 1 /* X_OK */, unix.AT_EACCESS, 0, 0)
	if e == unix.ENOSYS || e == unix.EPERM || e == 0 {
		if st.Mode&0o111 == 0 {
			return unix.EACCES
		}
		return 0
	}
	return e
}
