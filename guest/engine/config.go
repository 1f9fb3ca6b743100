//go:build linux

package engine

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"

	"dhow/internal/errdefs"
)

// mergeConfig completes what the user asked for by what the image says, in
// place, by dockerd's rules.
func mergeConfig(user *container.Config, img *dockerspec.DockerOCIImageConfig) error {
	if img != nil {
		if err := mergeImage(user, img); err != nil {
			return err
		}
	}
	// [""] is how a client says: no entrypoint, the image's not either.
	if len(user.Entrypoint) == 1 && user.Entrypoint[0] == "" {
		user.Entrypoint = nil
	}
	if len(user.Entrypoint) == 0 && len(user.Cmd) == 0 {
		return errdefs.New(errdefs.Invalid, "no command specified")
	}
	return nil
}

func mergeImage(user *container.Config, img *dockerspec.DockerOCIImageConfig) error {
	if user.User == "" {
		user.User = img.User
	}
	for p := range img.ExposedPorts {
		port, err := network.ParsePort(p)
		if err != nil {
			return errdefs.Wrap(errdefs.Invalid, err, "the image exposes the malformed port %q", p)
		}
		if user.ExposedPorts == nil {
			user.ExposedPorts = network.PortSet{}
		}
		user.ExposedPorts[port] = struct{}{}
	}
	for _, e := range img.Env {
		name, _, _ := strings.Cut(e, "=")
		if !slices.ContainsFunc(user.Env, func(u string) bool { n, _, _ := strings.Cut(u, "="); return n == name }) {
			user.Env = append(user.Env, e)
		}
	}
	if user.Labels == nil {
		user.Labels = map[string]string{}
	}
	for k, v := range img.Labels {
		if _, ok := user.Labels[k]; !ok {
			user.Labels[k] = v
		}
	}
	// An entrypoint of the user's own drops the image's command with its entrypoint.
	if len(user.Entrypoint) == 0 {
		if len(user.Cmd) == 0 {
			user.Cmd = slices.Clone(img.Cmd)
		}
		if user.Entrypoint == nil {
			user.Entrypoint = slices.Clone(img.Entrypoint)
		}
	}
	if h := img.Healthcheck; h != nil {
		if user.Healthcheck == nil {
			user.Healthcheck = &dockerspec.HealthcheckConfig{}
		}
		u := user.Healthcheck
		if len(u.Test) == 0 {
			u.Test = h.Test
		}
		or := func(a *time.Duration, b time.Duration) {
			if *a == 0 {
				*a = b
			}
		}
		or(&u.Interval, h.Interval)
		or(&u.Timeout, h.Timeout)
		or(&u.StartPeriod, h.StartPeriod)
		or(&u.StartInterval, h.StartInterval)
		if u.Retries == 0 {
			u.Retries = h.Retries
		}
	}
	if user.WorkingDir == "" {
		user.WorkingDir = img.WorkingDir
	}
	for v := range img.Volumes {
		if user.Volumes == nil {
			user.Volumes = map[string]struct{}{}
		}
		user.Volumes[v] = struct{}{}
	}
	if user.StopSignal == "" {
		user.StopSignal = img.StopSignal
	}
	if len(user.Shell) == 0 && len(img.Shell) > 0 {
		user.Shell = slices.Clone(img.Shell)
	}
	return nil
}

// checkConfig verifies the portable half of a request, before the image is
// known.
func checkConfig(c *container.Config) error {
	if c == nil {
		return errdefs.New(errdefs.Invalid, "config cannot be empty in order to create a container")
	}
	if c.WorkingDir != "" {
		c.WorkingDir = path.Clean(c.WorkingDir)
		if !path.IsAbs(c.WorkingDir) {
			return errdefs.New(errdefs.Invalid, "the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
		}
	}
	if c.StopSignal != "" {
		if _, err := parseSignal(c.StopSignal); err != nil {
			return err
		}
	}
	for _, e := range c.Env {
		if e == "" || e[0] == '=' {
			return errdefs.New(errdefs.Invalid, "invalid environment variable: %s", e)
		}
	}
	if h := c.Healthcheck; h != nil {
		for _, d := range []struct {
			name string
			v    time.Duration
		}{{"Interval", h.Interval}, {"Timeout", h.Timeout}, {"StartPeriod", h.StartPeriod}, {"StartInterval", h.StartInterval}} {
			if d.v != 0 && d.v < container.MinimumDuration {
				return errdefs.New(errdefs.Invalid, "%s in Healthcheck cannot be less than %s", d.name, container.MinimumDuration)
			}
		}
		if h.Retries < 0 {
			return errdefs.New(errdefs.Invalid, "Retries in Healthcheck cannot be negative")
		}
	}
	return nil
}

// unsupported names what this version does not do, one sentence each, so that
// nobody finds out from a container that silently lacks it.
func unsupported(h *container.HostConfig) error {
	no := func(what string) error {
		return errdefs.New(errdefs.Unimplemented, "%s not supported yet by this version of dhow", what)
	}
	switch {
	case len(h.PortBindings) > 0 || h.PublishAllPorts:
		return no("published ports (--publish, --publish-all) are")
	case len(h.VolumesFrom) > 0:
		return no("volumes of another container (--volumes-from) are")
	case len(h.Links) > 0:
		return no("container links (--link) are")
	case h.NetworkMode.IsContainer():
		return no("sharing another container's network (--network container:…) is")
	case h.IpcMode.IsContainer():
		return no("sharing another container's IPC namespace (--ipc container:…) is")
	case h.PidMode.IsContainer():
		return no("sharing another container's PID namespace (--pid container:…) is")
	case len(h.DeviceRequests) > 0:
		return no("device requests (--gpus) are")
	case len(h.StorageOpt) > 0:
		return no("storage options (--storage-opt) are")
	case h.Isolation != "" && !h.Isolation.IsDefault():
		return errdefs.New(errdefs.Invalid, "invalid isolation '%s' on linux", h.Isolation)
	}
	if len(h.Binds) > 0 {
		what := "named volumes"
		if strings.HasPrefix(h.Binds[0], "/") {
			what = "folders of the host"
		}
		return no(what + " (--volume " + h.Binds[0] + ") are")
	}
	for _, m := range h.Mounts {
		if m.Type != "tmpfs" {
			return no(fmt.Sprintf("mounts of type %s (--mount) are", m.Type))
		}
	}
	return nil
}

const minMemory = 6 << 20 // bytes; dockerd's figure

// checkHost verifies and completes the rest of a request, in place. cpus is
// how many the machine has.
func checkHost(h *container.HostConfig, cpus int) error {
	bad := func(format string, args ...any) error { return errdefs.New(errdefs.Invalid, format, args...) }
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return bad("%s", err.Error())
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return bad("can't create 'AutoRemove' container with restart policy")
	}
	if err := unsupported(h); err != nil {
		return err
	}
	switch {
	case h.ShmSize < 0:
		return bad("SHM size can not be less than 0")
	case h.MemorySwappiness != nil && (*h.MemorySwappiness < -1 || *h.MemorySwappiness > 100):
		return bad("Invalid value: %v, valid memory swappiness range is 0-100", *h.MemorySwappiness)
	case h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000:
		return bad("Invalid value %d, range for oom score adj is [-1000, 1000]", h.OomScoreAdj)
	case !h.CgroupnsMode.Valid():
		return bad("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	case !h.IpcMode.Valid():
		return bad("invalid IPC mode: %v", h.IpcMode)
	case !h.PidMode.Valid():
		return bad("invalid PID mode: %v", h.PidMode)
	case !h.UTSMode.Valid():
		return bad("invalid UTS mode: %v", h.UTSMode)
	case h.Runtime != "" && h.Runtime != runtimeName && h.Runtime != "runc" && h.Runtime != "io.containerd.runc.v2":
		// The others' names are accepted because clients have them written down: the contract behind them is ours too.
		return bad("unknown or invalid runtime name: %s", h.Runtime)
	case h.Memory != 0 && h.Memory < minMemory:
		return bad("Minimum memory limit allowed is 6MB")
	case h.Memory == 0 && h.MemorySwap > 0:
		return bad("You should always set the Memory limit when using Memoryswap limit, see usage")
	case h.Memory > 0 && h.MemorySwap > 0 && h.MemorySwap < h.Memory:
		return bad("Minimum memoryswap limit should be larger than memory limit, see usage")
	case h.MemoryReservation != 0 && h.MemoryReservation < minMemory:
		return bad("Minimum memory reservation allowed is 6MB")
	case h.Memory > 0 && h.MemoryReservation > 0 && h.Memory < h.MemoryReservation:
		return bad("Minimum memory limit can not be less than memory reservation limit, see usage")
	case h.NanoCPUs > 0 && h.CPUPeriod > 0:
		return bad("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	case h.NanoCPUs > 0 && h.CPUQuota > 0:
		return bad("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	case h.NanoCPUs < 0 || h.NanoCPUs > int64(cpus)*1e9:
		return bad("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", cpus)
	case h.CPUPeriod != 0 && (h.CPUPeriod < 1000 || h.CPUPeriod > 1000000):
		return bad("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case h.CPUQuota > 0 && h.CPUQuota < 1000:
		return bad("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	if _, err := logOptions(h.LogConfig); err != nil {
		return err
	}
	for _, e := range h.ExtraHosts {
		if name, addr, ok := strings.Cut(e, ":"); !ok || name == "" || addr == "" {
			return bad("bad format for add-host: %q", e)
		}
	}
	setHostDefaults(h)
	return nil
}

// setHostDefaults writes the values that dockerd shows in an inspect.
func setHostDefaults(h *container.HostConfig) {
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = network.NetworkBridge
	}
	if h.ShmSize == 0 {
		h.ShmSize = 64 << 20
	}
	if h.IpcMode.IsEmpty() {
		h.IpcMode = container.IPCModePrivate
	}
	if h.CgroupnsMode.IsEmpty() {
		h.CgroupnsMode = container.CgroupnsModePrivate
	}
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = 2 * h.Memory
	}
	// cgroup v2 has neither.
	h.OomKillDisable, h.MemorySwappiness = nil, nil
	if h.PidsLimit != nil && *h.PidsLimit <= 0 {
		h.PidsLimit = nil
	}
	h.Runtime = runtimeName
	if h.LogConfig.Type == "" {
		h.LogConfig.Type = "json-file"
	}
	if h.LogConfig.Config == nil {
		h.LogConfig.Config = map[string]string{}
	}
}

// setDefaults completes the merged config; id is the new container's.
func setDefaults(c *container.Config, h *container.HostConfig, id string) {
	if c.Hostname == "" && !h.UTSMode.IsHost() && !h.NetworkMode.IsHost() {
		c.Hostname = shortID(id)
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
}

// command splits what runs into docker's Path and Args.
func command(c *container.Config) (path string, args []string) {
	all := slices.Concat([]string(c.Entrypoint), []string(c.Cmd))
	if len(all) == 0 {
		return "", []string{}
	}
	return all[0], all[1:]
}

// parseSignal reads a signal by name, with or without SIG, or by number.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := parseUint(s); err == nil {
		if n == 0 || n > 64 {
			return 0, errdefs.New(errdefs.Invalid, "invalid signal: %s", s)
		}
		return unix.Signal(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if sig := unix.SignalNum("SIG" + name); sig != 0 {
		return sig, nil
	}
	// The real-time signals, as docker names them.
	const rtmin, rtmax = 34, 64
	if d, ok := strings.CutPrefix(name, "RTMIN"); ok {
		if n, err := parseUint(strings.TrimPrefix(d, "+")); d == "" || err == nil && n <= 15 {
			return unix.Signal(rtmin + n), nil
		}
	}
	if d, ok := strings.CutPrefix(name, "RTMAX"); ok {
		if n, err := parseUint(strings.TrimPrefix(d, "-")); d == "" || err == nil && n <= 14 {
			return unix.Signal(rtmax - n), nil
		}
	}
	return 0, errdefs.New(errdefs.Invalid, "invalid signal: %s", s)
}

func parseUint(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return int(n), err
}
