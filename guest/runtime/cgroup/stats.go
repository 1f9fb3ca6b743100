//go:build linux

package cgroup

import (
	"bytes"
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// Stats are the usage counters of a cgroup. What the kernel has no controller
// for is zero. Sizes are bytes; Unlimited stands for "max".
type Stats struct {
	Read   time.Time
	CPU    CPUStats
	Memory MemoryStats
	Pids   PidsStats
	IO     []IOStats
}

// Unlimited is the value of a limit that is not set.
const Unlimited = ^uint64(0)

// CPUStats is cpu.stat.
type CPUStats struct {
	Usage, User, System time.Duration
	Periods, Throttled  uint64
	ThrottledTime       time.Duration
}

// MemoryStats is memory.current and its siblings; Stat is memory.stat as it is.
type MemoryStats struct {
	Usage, Peak, Limit   uint64
	SwapUsage, SwapLimit uint64
	OOMs, OOMKills       uint64 // oom and oom_kill of memory.events
	Stat                 map[string]uint64
}

// PidsStats is pids.current and pids.max.
type PidsStats struct{ Current, Limit uint64 }

// IOStats is a line of io.stat.
type IOStats struct {
	Major, Minor          uint64
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

// Stats reads the counters.
func (c *Cgroup) Stats() (Stats, error) {
	s := Stats{Read: time.Now(), Memory: MemoryStats{Limit: Unlimited, SwapLimit: Unlimited}, Pids: PidsStats{Limit: Unlimited}}
	b, err := c.read("cpu.stat")
	if err != nil {
		return s, err
	}
	us := func(key string) time.Duration {
		v, _ := keyed(b, key)
		return time.Duration(v) * time.Microsecond
	}
	s.CPU.Usage, s.CPU.User, s.CPU.System, s.CPU.ThrottledTime = us("usage_usec"), us("user_usec"), us("system_usec"), us("throttled_usec")
	s.CPU.Periods, _ = keyed(b, "nr_periods")
	s.CPU.Throttled, _ = keyed(b, "nr_throttled")
	if c.tree.Has("memory") {
		if err := c.memoryStats(&s.Memory); err != nil {
			return s, err
		}
	}
	if c.tree.Has("pids") {
		for _, f := range []struct {
			name string
			v    *uint64
		}{{"pids.current", &s.Pids.Current}, {"pids.max", &s.Pids.Limit}} {
			if err := c.number(f.name, f.v); err != nil {
				return s, err
			}
		}
	}
	if c.tree.Has("io") {
		b, err := c.read("io.stat")
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return s, err
		}
		s.IO = parseIO(b)
	}
	return s, nil
}

func (c *Cgroup) memoryStats(m *MemoryStats) error {
	for _, f := range []struct {
		name string
		v    *uint64
	}{
		{"memory.current", &m.Usage}, {"memory.peak", &m.Peak}, {"memory.max", &m.Limit},
		{"memory.swap.current", &m.SwapUsage}, {"memory.swap.max", &m.SwapLimit},
	} {
		// memory.peak came with Linux 5.19; swap files are missing without swap accounting.
		if err := c.number(f.name, f.v); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	b, err := c.read("memory.events")
	if err != nil {
		return err
	}
	m.OOMs, _ = keyed(b, "oom")
	m.OOMKills, _ = keyed(b, "oom_kill")
	if b, err = c.read("memory.stat"); err != nil {
		return err
	}
	m.Stat = make(map[string]uint64, 64)
	for line := range bytes.Lines(b) {
		if k, v, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" ")); ok {
			m.Stat[string(k)] = parseUint(v)
		}
	}
	return nil
}

// number reads a file that holds one number.
func (c *Cgroup) number(name string, v *uint64) error {
	b, err := c.read(name)
	if err != nil {
		return err
	}
	*v = parseUint(bytes.TrimSpace(b))
	return nil
}

// parseIO reads io.stat: "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6".
func parseIO(b []byte) (l []IOStats) {
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		if len(f) < 2 {
			continue // a device without traffic
		}
		major, minor, ok := bytes.Cut(f[0], []byte(":"))
		if !ok {
			continue
		}
		s := IOStats{Major: parseUint(major), Minor: parseUint(minor)}
		for _, kv := range f[1:] {
			k, v, _ := bytes.Cut(kv, []byte("="))
			switch string(k) {
			case "rbytes":
				s.ReadBytes = parseUint(v)
			case "wbytes":
				s.WriteBytes = parseUint(v)
			case "rios":
				s.ReadOps = parseUint(v)
			case "wios":
				s.WriteOps = parseUint(v)
			}
		}
		l = append(l, s)
	}
	return l
}
