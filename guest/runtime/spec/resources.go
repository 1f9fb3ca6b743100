//go:build linux

package spec

import (
	"path"
	"regexp"
	"strconv"
	"strings"

	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// devices applies --privileged, --device and --device-cgroup-rule.
func devices(s *specs.Spec, in *Input) error {
	h := in.HostConfig
	rules := s.Linux.Resources.Devices
	if h.Privileged {
		rules = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		if in.HostDevices != nil {
			all, err := in.HostDevices()
			if err != nil {
				return err
			}
			s.Linux.Devices = append(s.Linux.Devices, all...)
		}
	}
	for _, d := range h.Devices {
		inside := d.PathInContainer
		if inside == "" {
			inside = d.PathOnHost
		}
		if h.Privileged && inside == d.PathOnHost {
			continue
		}
		found, err := deviceAt(in, d.PathOnHost)
		if err != nil {
			return err
		}
		access := d.CgroupPermissions
		if access == "" {
			access = "rwm"
		}
		for _, n := range found {
			// A directory gives its devices, below the path that it is mapped to.
			n.Path = path.Join(inside, strings.TrimPrefix(n.Path, d.PathOnHost))
			s.Linux.Devices = append(s.Linux.Devices, n)
			if !h.Privileged {
				major, minor := n.Major, n.Minor
				rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: n.Type, Major: &major, Minor: &minor, Access: access})
			}
		}
	}
	for _, text := range h.DeviceCgroupRules {
		r, err := deviceRule(text)
		if err != nil {
			return err
		}
		if !h.Privileged {
			rules = append(rules, r)
		}
	}
	s.Linux.Resources.Devices = rules
	return nil
}

func deviceAt(in *Input, name string) ([]specs.LinuxDevice, error) {
	if in.DeviceAt == nil {
		return nil, errdefs.New(errdefs.Unimplemented, "devices of the machine are not available here: %s", name)
	}
	l, err := in.DeviceAt(name)
	if err != nil || len(l) == 0 {
		return nil, errdefs.Wrap(errdefs.Invalid, orNot(err), "error gathering device information while adding custom device %q", name)
	}
	return l, nil
}

func orNot(err error) error {
	if err == nil {
		return errdefs.New(errdefs.Invalid, "not a device node")
	}
	return err
}

var deviceRulePattern = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

// deviceRule reads "c 1:3 rwm" with * for any number.
func deviceRule(text string) (r specs.LinuxDeviceCgroup, err error) {
	m := deviceRulePattern.FindStringSubmatch(text)
	if m == nil {
		return r, errdefs.New(errdefs.Invalid, "invalid device cgroup rule format: '%s'", text)
	}
	r = specs.LinuxDeviceCgroup{Allow: true, Type: m[1], Access: m[4]}
	for _, n := range []struct {
		text string
		to   **int64
	}{{m[2], &r.Major}, {m[3], &r.Minor}} {
		v := int64(-1)
		if n.text != "*" {
			if v, err = strconv.ParseInt(n.text, 10, 32); err != nil {
				return r, errdefs.New(errdefs.Invalid, "invalid device cgroup rule format: '%s'", text)
			}
		}
		*n.to = &v
	}
	return r, nil
}

const minMemory = 6 << 20 // less does not even start a process

// resources fills the cgroup limits.
func resources(r *specs.LinuxResources, in *Input) error {
	h := &in.HostConfig.Resources
	limits, err := Resources(h)
	if err != nil {
		return err
	}
	r.Memory, r.CPU, r.Pids = limits.Memory, limits.CPU, limits.Pids
	if h.BlkioWeight != 0 {
		if h.BlkioWeight < 10 || h.BlkioWeight > 1000 {
			return errdefs.New(errdefs.Invalid, "Range of blkio weight is from 10 to 1000")
		}
		weight := h.BlkioWeight
		blockIO(r).Weight = &weight
	}
	for _, d := range h.BlkioWeightDevice {
		dev, err := deviceAt(in, d.Path)
		if err != nil {
			return err
		}
		weight := d.Weight
		w := specs.LinuxWeightDevice{Weight: &weight}
		w.Major, w.Minor = dev[0].Major, dev[0].Minor
		blockIO(r).WeightDevice = append(blockIO(r).WeightDevice, w)
	}
	for _, t := range []struct {
		from []*blkiodev.ThrottleDevice
		to   func(*specs.LinuxBlockIO) *[]specs.LinuxThrottleDevice
	}{
		{h.BlkioDeviceReadBps, func(b *specs.LinuxBlockIO) *[]specs.LinuxThrottleDevice { return &b.ThrottleReadBpsDevice }},
		{h.BlkioDeviceWriteBps, func(b *specs.LinuxBlockIO) *[]specs.LinuxThrottleDevice { return &b.ThrottleWriteBpsDevice }},
		{h.BlkioDeviceReadIOps, func(b *specs.LinuxBlockIO) *[]specs.LinuxThrottleDevice { return &b.ThrottleReadIOPSDevice }},
		{h.BlkioDeviceWriteIOps, func(b *specs.LinuxBlockIO) *[]specs.LinuxThrottleDevice { return &b.ThrottleWriteIOPSDevice }},
	} {
		for _, d := range t.from {
			dev, err := deviceAt(in, d.Path)
			if err != nil {
				return err
			}
			td := specs.LinuxThrottleDevice{Rate: d.Rate}
			td.Major, td.Minor = dev[0].Major, dev[0].Minor
			list := t.to(blockIO(r))
			*list = append(*list, td)
		}
	}
	return nil
}

func blockIO(r *specs.LinuxResources) *specs.LinuxBlockIO {
	if r.BlockIO == nil {
		r.BlockIO = &specs.LinuxBlockIO{}
	}
	return r.BlockIO
}

// Resources translates the limits on memory, CPU and processes, for a new
// container or for an update of a running one. Unset ones stay nil.
func Resources(h *container.Resources) (*specs.LinuxResources, error) {
	r := &specs.LinuxResources{}
	swap := h.MemorySwap
	switch {
	case h.Memory != 0 && h.Memory < minMemory:
		return nil, errdefs.New(errdefs.Invalid, "Minimum memory limit allowed is 6MB")
	case h.Memory > 0 && swap > 0 && swap < h.Memory:
		return nil, errdefs.New(errdefs.Invalid, "Minimum memoryswap limit should be larger than memory limit, see usage")
	case h.Memory == 0 && swap > 0:
		return nil, errdefs.New(errdefs.Invalid, "You should always set the Memory limit when using Memoryswap limit, see usage")
	case h.MemoryReservation > 0 && h.MemoryReservation < minMemory:
		return nil, errdefs.New(errdefs.Invalid, "Minimum memory reservation allowed is 6MB")
	case h.Memory > 0 && h.MemoryReservation > h.Memory:
		return nil, errdefs.New(errdefs.Invalid, "Minimum memory limit can not be less than memory reservation limit, see usage")
	case h.Memory > 0 && swap == 0:
		swap = 2 * h.Memory
	}
	if h.Memory > 0 || h.MemoryReservation > 0 || swap != 0 {
		r.Memory = &specs.LinuxMemory{}
		if h.Memory > 0 {
			r.Memory.Limit = &h.Memory
		}
		if h.MemoryReservation > 0 {
			r.Memory.Reservation = &h.MemoryReservation
		}
		if swap != 0 {
			r.Memory.Swap = &swap
		}
	}
	var err error
	if r.CPU, err = cpu(h); err != nil {
		return nil, err
	}
	if h.PidsLimit != nil {
		n := *h.PidsLimit
		if n <= 0 {
			n = -1 // without limit
		}
		r.Pids = &specs.LinuxPids{Limit: &n}
	}
	return r, nil
}

const defaultPeriod = 100_000 // of the CPU quota, µs

func cpu(h *container.Resources) (*specs.LinuxCPU, error) {
	switch {
	case h.CPUShares < 0:
		return nil, errdefs.New(errdefs.Invalid, "invalid CPU shares (%d): value must be a positive integer", h.CPUShares)
	case h.NanoCPUs < 0:
		return nil, errdefs.New(errdefs.Invalid, "invalid CPUs: %d", h.NanoCPUs)
	case h.NanoCPUs > 0 && h.CPUPeriod != 0:
		return nil, errdefs.New(errdefs.Invalid, "Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case h.NanoCPUs > 0 && h.CPUQuota != 0:
		return nil, errdefs.New(errdefs.Invalid, "Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case h.CPUPeriod != 0 && (h.CPUPeriod < 1000 || h.CPUPeriod > 1_000_000):
		return nil, errdefs.New(errdefs.Invalid, "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case h.CPUQuota > 0 && h.CPUQuota < 1000:
		return nil, errdefs.New(errdefs.Invalid, "CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	c := specs.LinuxCPU{Cpus: h.CpusetCpus, Mems: h.CpusetMems}
	set := c.Cpus != "" || c.Mems != ""
	if h.CPUShares > 0 {
		shares := uint64(h.CPUShares)
		c.Shares, set = &shares, true
	}
	period, quota := h.CPUPeriod, h.CPUQuota
	if h.NanoCPUs > 0 {
		period, quota = defaultPeriod, h.NanoCPUs*defaultPeriod/1e9
	}
	if period != 0 {
		p := uint64(period)
		c.Period, set = &p, true
	}
	if quota != 0 {
		c.Quota, set = &quota, true
	}
	if !set {
		return nil, nil
	}
	return &c, nil
}
