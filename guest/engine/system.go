//go:build linux

package engine

import (
	"context"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"dhow/guest/store"
)

// Info tells about the engine and its machine.
func (e *Engine) Info(ctx context.Context) (system.Info, error) {
	images, err := e.o.Store.Images(ctx)
	if err != nil {
		return system.Info{}, err
	}
	mem, err := memoryTotal()
	if err != nil {
		return system.Info{}, err
	}
	host, err := os.Hostname()
	if err != nil {
		return system.Info{}, err
	}
	id, err := e.machineID(ctx)
	if err != nil {
		return system.Info{}, err
	}
	in := system.Info{
		ID: id, Name: host, Images: len(images), Driver: driverName,
		DriverStatus: [][2]string{{"Backing Filesystem", "extfs"}, {"Supports d_type", "true"}, {"Native Overlay Diff", "true"}, {"userxattr", "false"}},
		Plugins: system.PluginsInfo{
			Volume: []string{}, Network: []string{"bridge", "host", "null"}, Log: []string{"json-file", "local", "none"},
		},
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true,
		IPv4Forwarding: true, NFd: openFiles(), NGoroutines: runtime.NumGoroutine(), NEventsListener: e.o.Events.Listeners(),
		SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: "json-file",
		CgroupDriver: "cgroupfs", CgroupVersion: "2",
		KernelVersion: kernel(), OperatingSystem: "dhow " + e.o.Version, OSVersion: e.o.Version, OSType: "linux", Architecture: machine(),
		IndexServerAddress: "https://index.docker.io/v1/",
		RegistryConfig: &registry.ServiceConfig{
			IndexConfigs: map[string]*registry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: []string{}, Secure: true, Official: true}},
			Mirrors:      []string{},
		},
		NCPU: e.o.CPUs, MemTotal: int64(mem), DockerRootDir: e.o.Root,
		Labels: []string{}, ServerVersion: e.o.Version,
		Runtimes: map[string]system.RuntimeWithStatus{runtimeName: {Runtime: system.Runtime{Path: "dhow-enter"}}},
		// The runtime's own, named as docker's is inside of a container.
		InitBinary:     "docker-init",
		DefaultRuntime: runtimeName, SecurityOptions: []string{"name=seccomp,profile=builtin", "name=cgroupns"},
		Warnings: []string{},
	}
	in.Swarm.LocalNodeState = "inactive"
	for _, b := range e.all() {
		in.Containers++
		switch r := b.copy(); r.State.Status {
		case container.StateRunning, container.StateRestarting:
			in.ContainersRunning++
		case container.StatePaused:
			in.ContainersPaused++
		default:
			in.ContainersStopped++
		}
	}
	return in, nil
}

// Version tells the versions of the engine and its parts.
func (e *Engine) Version(context.Context) (system.VersionResponse, error) { return VersionOf(e.o), nil }

// VersionOf is what an engine with these options tells of its versions: of o it
// reads Version, Commit, APIVersion and MinAPIVersion. There is no build time,
// so that the same sources give the same bytes.
func VersionOf(o Options) system.VersionResponse {
	details := map[string]string{
		"ApiVersion": o.APIVersion, "MinAPIVersion": o.MinAPIVersion, "Arch": goArch, "Os": "linux",
		"GoVersion": runtime.Version(), "KernelVersion": kernel(), "GitCommit": o.Commit, "Experimental": "false",
	}
	v := system.VersionResponse{
		Version: o.Version, GitCommit: o.Commit, APIVersion: o.APIVersion, MinAPIVersion: o.MinAPIVersion,
		Os: "linux", Arch: goArch, GoVersion: runtime.Version(), KernelVersion: kernel(),
		Components: []system.ComponentVersion{{Name: "Engine", Version: o.Version, Details: details}},
	}
	v.Platform.Name = "dhow"
	return v
}

// Auth asks a registry whether it takes the credentials: Docker Hub where they
// name none. Credentials that are refused are an error of class Denied.
func (e *Engine) Auth(ctx context.Context, a registry.AuthConfig) (status, identityToken string, err error) {
	token, err := e.o.Store.Login(ctx, authOf(a))
	if err != nil {
		return "", "", err
	}
	return "Login Succeeded", token, nil
}

func authOf(a registry.AuthConfig) store.Auth {
	return store.Auth{
		Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken,
		RegistryToken: a.RegistryToken, ServerAddress: a.ServerAddress,
	}
}

// DiskUsage tells what images and containers hold.
func (e *Engine) DiskUsage(ctx context.Context) (system.DiskUsage, error) {
	images, err := e.ImageList(ctx, true, nil)
	if err != nil {
		return system.DiskUsage{}, err
	}
	containers, err := e.ContainerList(ctx, ListOptions{All: true, Size: true})
	if err != nil {
		return system.DiskUsage{}, err
	}
	total, err := e.o.Store.Usage(ctx)
	if err != nil {
		return system.DiskUsage{}, err
	}
	iu := &image.DiskUsage{Items: images, TotalCount: int64(len(images)), TotalSize: total}
	used := map[digest.Digest]bool{}
	for _, i := range images {
		if i.Containers > 0 {
			iu.ActiveCount++
			used[digest.Digest(i.ID)] = true
		}
	}
	if iu.Reclaimable, err = e.o.Store.Reclaimable(ctx, func(id digest.Digest) bool { return used[id] }); err != nil {
		return system.DiskUsage{}, err
	}
	cu := &container.DiskUsage{Items: containers, TotalCount: int64(len(containers))}
	for _, c := range containers {
		cu.TotalSize += c.SizeRw
		switch c.State {
		case container.StateRunning, container.StatePaused, container.StateRestarting:
			cu.ActiveCount++
		default:
			cu.Reclaimable += c.SizeRw
		}
	}
	return system.DiskUsage{ImageUsage: iu, ContainerUsage: cu, VolumeUsage: &volume.DiskUsage{}, BuildCacheUsage: &build.DiskUsage{}}, nil
}

func openFiles() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(d)
}

// kernel is the running kernel's release, machine the hardware's name.
func kernel() string  { return uname(func(u *unix.Utsname) []byte { return u.Release[:] }) }
func machine() string { return uname(func(u *unix.Utsname) []byte { return u.Machine[:] }) }

func uname(field func(*unix.Utsname) []byte) string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return ""
	}
	s, _, _ := strings.Cut(string(field(&u)), "\x00")
	return s
}

// memoryTotal is the machine's memory in bytes.
func memoryTotal() (uint64, error) {
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return 0, err
	}
	return uint64(s.Totalram) * uint64(s.Unit), nil
}
