package enter

// Encode returns c as it goes over the control socket, without the length
// before it.
func (c *Config) Encode() []byte {
	e := encoder{b: make([]byte, 0, 8192+len(c.Seccomp))}
	e.s(c.ID)
	e.u(c.Flags)
	e.u(uint64(len(c.Join)))
	for _, j := range c.Join {
		e.u(j.FD)
		e.u(j.Type)
	}
	e.u(c.Unshare)
	e.mounts(c.RootMounts)
	e.s(c.RootPath)
	e.u(c.InitPropagation)
	e.u(c.RootPropagation)
	e.mounts(c.Mounts)
	e.u(uint64(len(c.Devices)))
	for i := range c.Devices {
		d := &c.Devices[i]
		e.s(d.Path)
		for _, v := range [...]uint64{d.Mode, d.Major, d.Minor, d.UID, d.GID} {
			e.u(v)
		}
	}
	e.pairs(c.Links)
	e.ss(c.Masked)
	e.ss(c.ReadonlyPaths)
	e.s(c.Hostname)
	e.s(c.Domainname)
	e.pairs(c.Sysctl)
	e.ss(c.Args)
	e.ss(c.Env)
	e.s(c.Cwd)
	e.u(c.UID)
	e.u(c.GID)
	e.u(uint64(len(c.Gids)))
	for _, g := range c.Gids {
		e.u(g)
	}
	e.s(c.User)
	e.ss(c.Groups)
	e.u(uint64(len(c.Rlimits)))
	for _, r := range c.Rlimits {
		e.u(r.Resource)
		e.u(r.Soft)
		e.u(r.Hard)
	}
	for _, v := range [...]uint64{c.Umask, c.CapDrop, c.CapEff, c.CapPrm, c.CapInh, c.CapAmb} {
		e.u(v)
	}
	e.s(string(c.Seccomp))
	e.u(c.SeccompFlags)
	e.s(c.Keyring)
	e.u(c.Personality)
	e.u(c.Rows)
	e.u(c.Cols)
	return e.b
}

// DecodeConfig reads what Encode wrote. The strings share b's memory.
func DecodeConfig(b []byte) (*Config, error) { return decodeConfig(b, nil) }

func decodeConfig(b []byte, a *arena) (*Config, error) {
	d := &decoder{b: b, a: a}
	c := &list[Config](a, 1)[0]
	c.ID, c.Flags = d.s(), d.u()
	c.Join = list[Join](d.a, d.n())
	for i := range c.Join {
		c.Join[i] = Join{d.u(), d.u()}
	}
	c.Unshare = d.u()
	c.RootMounts = d.mounts()
	c.RootPath, c.InitPropagation, c.RootPropagation = d.s(), d.u(), d.u()
	c.Mounts = d.mounts()
	c.Devices = list[Device](d.a, d.n())
	for i := range c.Devices {
		c.Devices[i] = Device{Path: d.s(), Mode: d.u(), Major: d.u(), Minor: d.u(), UID: d.u(), GID: d.u()}
	}
	c.Links = d.pairs()
	c.Masked, c.ReadonlyPaths = d.ss(), d.ss()
	c.Hostname, c.Domainname = d.s(), d.s()
	c.Sysctl = d.pairs()
	c.Args, c.Env, c.Cwd = d.ss(), d.ss(), d.s()
	c.UID, c.GID = d.u(), d.u()
	c.Gids = list[uint64](d.a, d.n())
	for i := range c.Gids {
		c.Gids[i] = d.u()
	}
	c.User, c.Groups = d.s(), d.ss()
	c.Rlimits = list[Rlimit](d.a, d.n())
	for i := range c.Rlimits {
		c.Rlimits[i] = Rlimit{d.u(), d.u(), d.u()}
	}
	for _, p := range [...]*uint64{&c.Umask, &c.CapDrop, &c.CapEff, &c.CapPrm, &c.CapInh, &c.CapAmb} {
		*p = d.u()
	}
	c.Seccomp = d.bytes()
	c.SeccompFlags = d.u()
	c.Keyring = d.s()
	c.Personality, c.Rows, c.Cols = d.u(), d.u(), d.u()
	if d.bad || len(d.b) != 0 {
		return nil, errShort
	}
	return c, nil
}

func (e *encoder) mounts(l []Mount) {
	e.u(uint64(len(l)))
	for i := range l {
		m := &l[i]
		e.u(m.Kind)
		e.u(m.Flags)
		for _, s := range [...]string{m.Type, m.Source, m.Target, m.Data, m.Dir} {
			e.s(s)
		}
		for _, v := range [...]uint64{m.MS, m.AttrSet, m.AttrClear, m.RecSet, m.RecClear, m.Propagation} {
			e.u(v)
		}
	}
}

func (d *decoder) mounts() []Mount {
	l := list[Mount](d.a, d.n())
	for i := range l {
		l[i] = Mount{
			Kind: d.u(), Flags: d.u(),
			Type: d.s(), Source: d.s(), Target: d.s(), Data: d.s(), Dir: d.s(),
			MS: d.u(), AttrSet: d.u(), AttrClear: d.u(), RecSet: d.u(), RecClear: d.u(), Propagation: d.u(),
		}
	}
	return l
}

func (e *encoder) pairs(l []Pair) {
	e.u(uint64(len(l)))
	for _, p := range l {
		e.s(p.Key)
		e.s(p.Value)
	}
}

func (d *decoder) pairs() []Pair {
	l := list[Pair](d.a, d.n())
	for i := range l {
		l[i] = Pair{d.s(), d.s()}
	}
	return l
}
