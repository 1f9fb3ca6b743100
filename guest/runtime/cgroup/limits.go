//go:build linux

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// setting is one write to one file of a cgroup.
type setting struct{ file, value string }

// Limit sets the limits that r asks for, in an order in which the kernel
// takes them, and attaches the device rules. Fields that are nil are left as
// they are. A limit whose controller is missing is an error of class Invalid.
func (c *Cgroup) Limit(r *specs.LinuxResources) error {
	if r == nil {
		return nil
	}
	list, err := settings(r)
	if err != nil {
		return err
	}
	for _, s := range list {
		controller, _, _ := strings.Cut(s.file, ".")
		if controller != "cgroup" && !c.tree.Has(controller) {
			return errdefs.New(errdefs.Invalid, "the kernel does not offer the %s controller, which %s needs", controller, s.file)
		}
		err := c.write(s.file, s.value)
		if errors.Is(err, fs.ErrNotExist) && s.file == "memory.swap.max" {
			continue // a kernel that does not account for swap: memory is limited without it
		}
		if err != nil {
			return err
		}
	}
	if len(r.Devices) > 0 {
		return c.AttachDevices(r.Devices)
	}
	return nil
}

// settings translates resources to the files of version 2 (the rules are those
// of the OCI runtimes: crun's and runc's conversions agree).
func settings(r *specs.LinuxResources) ([]setting, error) {
	var l []setting
	add := func(file, value string) { l = append(l, setting{file, value}) }
	if err := memory(r.Memory, add); err != nil {
		return nil, err
	}
	cpu(r.CPU, add)
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0 {
		add("pids.max", maxOr(*r.Pids.Limit))
	}
	if err := blockIO(r.BlockIO, add); err != nil {
		return nil, err
	}
	for _, h := range r.HugepageLimits {
		add("hugetlb."+h.Pagesize+".max", strconv.FormatUint(h.Limit, 10))
	}
	if r.Network != nil && (r.Network.ClassID != nil || len(r.Network.Priorities) > 0) {
		return nil, errdefs.New(errdefs.Unimplemented, "network class and priority do not exist in cgroup version 2")
	}
	for file, value := range r.Unified {
		if strings.ContainsAny(file, "/\x00") || !strings.Contains(file, ".") || strings.HasPrefix(file, "cgroup.") {
			return nil, errdefs.New(errdefs.Invalid, "bad cgroup setting %q", file)
		}
		for line := range strings.SplitSeq(value, "\n") {
			if line != "" {
				add(file, line)
			}
		}
	}
	return l, nil
}

// maxOr writes a limit, where a negative one is none.
func maxOr(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

func memory(m *specs.LinuxMemory, add func(file, value string)) error {
	if m == nil {
		return nil
	}
	//lint:ignore SA1019 deprecated, but must not be ignored in silence
	if m.Kernel != nil || m.KernelTCP != nil {
		return errdefs.New(errdefs.Unimplemented, "kernel memory limits do not exist in cgroup version 2")
	}
	set := func(v *int64) bool { return v != nil && *v != 0 }
	// Swap of the spec is memory and swap together, as in version 1.
	var swap string
	switch {
	case !set(m.Swap):
	case *m.Swap < 0:
		swap = "max"
	case !set(m.Limit) || *m.Limit < 0:
		return errdefs.New(errdefs.Invalid, "a swap limit needs a memory limit")
	case *m.Swap < *m.Limit:
		return errdefs.New(errdefs.Invalid, "the memory+swap limit must be greater than or equal to the memory limit")
	default:
		swap = strconv.FormatInt(*m.Swap-*m.Limit, 10)
	}
	if swap != "" {
		add("memory.swap.max", swap)
	}
	if set(m.Limit) {
		add("memory.max", maxOr(*m.Limit))
	}
	if set(m.Reservation) {
		add("memory.low", maxOr(*m.Reservation))
	}
	return nil
}

// Weight converts version 1's CPU shares, 2…262144 with 1024 as the default, to
// version 2's weight, 1…10000, by the formula of the OCI runtimes.
func Weight(shares uint64) uint64 {
	if shares == 0 {
		return 0
	}
	shares = min(max(shares, 2), 262144)
	return 1 + (shares-2)*9999/262142
}

func cpu(p *specs.LinuxCPU, add func(file, value string)) {
	if p == nil {
		return
	}
	if p.Idle != nil {
		add("cpu.idle", strconv.FormatInt(*p.Idle, 10))
	}
	if p.Shares != nil && *p.Shares != 0 {
		add("cpu.weight", strconv.FormatUint(Weight(*p.Shares), 10))
	}
	quota, period := p.Quota != nil && *p.Quota != 0, p.Period != nil && *p.Period != 0
	if quota || period {
		v := "max"
		if quota && *p.Quota > 0 {
			v = strconv.FormatInt(*p.Quota, 10)
		}
		if period {
			v += " " + strconv.FormatUint(*p.Period, 10)
		}
		add("cpu.max", v)
	}
	if p.Burst != nil {
		add("cpu.max.burst", strconv.FormatUint(*p.Burst, 10))
	}
	if p.Cpus != "" {
		add("cpuset.cpus", p.Cpus)
	}
	if p.Mems != "" {
		add("cpuset.mems", p.Mems)
	}
}

// blkioWeight converts version 1's weight, 10…1000, to version 2's, 1…10000.
func blkioWeight(w uint16) uint64 { return 1 + (uint64(max(w, 10))-10)*9999/990 }

func blockIO(b *specs.LinuxBlockIO, add func(file, value string)) error {
	if b == nil {
		return nil
	}
	if b.Weight != nil && *b.Weight != 0 {
		if *b.Weight < 10 || *b.Weight > 1000 {
			return errdefs.New(errdefs.Invalid, "range of blkio weight is from 10 to 1000")
		}
		add("io.weight", "default "+strconv.FormatUint(blkioWeight(*b.Weight), 10))
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil {
			add("io.weight", fmt.Sprintf("%d:%d %d", d.Major, d.Minor, blkioWeight(*d.Weight)))
		}
	}
	for _, t := range []struct {
		key  string
		list []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice}, {"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice}, {"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.list {
			v := "max"
			if d.Rate != 0 {
				v = strconv.FormatUint(d.Rate, 10)
			}
			add("io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.key, v))
		}
	}
	return nil
}
