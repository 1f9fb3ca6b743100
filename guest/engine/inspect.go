//go:build linux

package engine

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
	"github.com/opencontainers/go-digest"
)

// driverName is what clients know the kind of our storage by.
const driverName = "overlay2"

// ContainerInspect tells all about a container; with size, also its sizes.
func (e *Engine) ContainerInspect(ctx context.Context, id string, size bool) (container.InspectResponse, error) {
	b, err := e.get(id)
	if err != nil {
		return container.InspectResponse{}, err
	}
	b.mu.Lock()
	r := b.rec
	ran := b.rec.State.alive() || !b.rec.State.StartedAt.IsZero()
	var execs []string
	for x := range b.execs {
		execs = append(execs, x)
	}
	b.mu.Unlock()
	slices.Sort(execs)
	path, args := command(r.Config)
	out := container.InspectResponse{
		ID: r.ID, Created: r.Created.UTC().Format(time.RFC3339Nano), Path: path, Args: args,
		State: r.State.api(), Image: r.ImageID.String(), Name: "/" + r.Name, RestartCount: r.RestartCount,
		Driver: driverName, Platform: "linux", ExecIDs: execs,
		HostConfig: r.HostConfig, Config: r.Config, Mounts: mountPoints(&r),
		GraphDriver:             &storage.DriverData{Name: driverName, Data: e.driverData(ctx, r.ID)},
		NetworkSettings:         &container.NetworkSettings{Ports: network.PortMap{}, Networks: b.endpointSettings()},
		ImageManifestDescriptor: r.Manifest,
	}
	if ran {
		out.ResolvConfPath, out.HostnamePath, out.HostsPath = b.resolvPath(), b.hostnamePath(), b.hostsPath()
		if b.log != nil {
			out.LogPath = b.logPath()
		}
	}
	if r.State.alive() {
		out.NetworkSettings.SandboxID = r.ID
		for p := range r.Config.ExposedPorts {
			out.NetworkSettings.Ports[p] = nil
		}
	}
	if size {
		rw, root, err := e.sizes(ctx, map[digest.Digest]int64{}, &r)
		if err != nil {
			return out, err
		}
		out.SizeRw, out.SizeRootFs = &rw, &root
	}
	return out, nil
}

// driverData names the directories of a container's root, as overlay2 does.
func (e *Engine) driverData(ctx context.Context, id string) map[string]string {
	data := map[string]string{"ID": id}
	mounts, err := e.o.Store.ContainerMounts(ctx, id)
	if err != nil {
		return data
	}
	for _, m := range mounts {
		for _, o := range m.Options {
			for key, field := range map[string]string{"lowerdir=": "LowerDir", "upperdir=": "UpperDir", "workdir=": "WorkDir"} {
				if v, ok := strings.CutPrefix(o, key); ok {
					data[field] = absolute(m.Dir, v)
				}
			}
		}
	}
	return data
}

// mountPoints are the mounts that a container asked for.
func mountPoints(r *Record) []container.MountPoint {
	list := []container.MountPoint{}
	for _, m := range r.HostConfig.Mounts {
		if m.Type == mount.TypeTmpfs {
			list = append(list, container.MountPoint{Type: mount.TypeTmpfs, Destination: m.Target, RW: !m.ReadOnly})
		}
	}
	return list
}

// absolute makes the directories of an overlay option absolute: they may be
// relative to dir.
func absolute(dir, list string) string {
	parts := strings.Split(list, ":")
	for i, p := range parts {
		if !filepath.IsAbs(p) {
			parts[i] = filepath.Join(dir, p)
		}
	}
	return strings.Join(parts, ":")
}
