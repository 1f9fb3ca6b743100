//go:build linux

package api

import (
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"
)

// Answers are shaped for the version asked for: fields that came later are
// taken out where old clients would trip over them, fields that were dropped
// are put back. The source is moby/api/docs/CHANGELOG.md. A struct that embeds
// an answer and shadows one of its fields adds to it without a second encoding.

// shapeSummary shapes one container of a list, in place. Lists and maps are
// never null: docker-py iterates over them unasked.
func shapeSummary(s *container.Summary, v version) {
	if s.Names == nil {
		s.Names = []string{}
	}
	if s.Ports == nil {
		s.Ports = []container.PortSummary{}
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if s.Mounts == nil {
		s.Mounts = []container.MountPoint{}
	}
	if s.NetworkSettings == nil {
		s.NetworkSettings = &container.NetworkSettingsSummary{}
	}
	if s.NetworkSettings.Networks == nil {
		s.NetworkSettings.Networks = map[string]*network.EndpointSettings{}
	}
	if v < v1(46) {
		s.HostConfig.Annotations = nil
	}
	if v < v1(48) {
		s.ImageManifestDescriptor = nil
	}
	if v < v1(52) {
		s.Health = nil
	}
}

// inspect151 is what inspecting a container gave up to API 1.51.
type inspect151 struct {
	*container.InspectResponse
	NetworkSettings networkSettings151
}

// networkSettings151 has the default bridge's endpoint at the top as well.
type networkSettings151 struct {
	*container.NetworkSettings
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []struct{} // always null
	SecondaryIPv6Addresses []struct{}
	EndpointID             string
	Gateway                netip.Addr
	GlobalIPv6Address      netip.Addr
	GlobalIPv6PrefixLen    int
	IPAddress              netip.Addr
	IPPrefixLen            int
	IPv6Gateway            netip.Addr
	MacAddress             network.HardwareAddr
}

// shapeInspect returns what to encode for r.
func shapeInspect(r container.InspectResponse, v version) any {
	if r.NetworkSettings == nil {
		r.NetworkSettings = &container.NetworkSettings{}
	}
	if r.NetworkSettings.Ports == nil {
		r.NetworkSettings.Ports = network.PortMap{}
	}
	if r.NetworkSettings.Networks == nil {
		r.NetworkSettings.Networks = map[string]*network.EndpointSettings{}
	}
	if r.Mounts == nil {
		r.Mounts = []container.MountPoint{}
	}
	if r.Args == nil {
		r.Args = []string{}
	}
	if v < v1(45) {
		withShortAliases(&r)
	}
	if v < v1(48) {
		r.ImageManifestDescriptor = nil
	}
	if v >= v1(52) {
		return r
	}
	if r.GraphDriver == nil && r.Storage != nil && r.Storage.RootFS != nil && r.Storage.RootFS.Snapshot != nil {
		r.GraphDriver = &storage.DriverData{Name: r.Storage.RootFS.Snapshot.Name}
		r.Storage = nil
	}
	old := inspect151{InspectResponse: &r, NetworkSettings: networkSettings151{NetworkSettings: r.NetworkSettings}}
	if ep := r.NetworkSettings.Networks[network.NetworkBridge]; ep != nil {
		n := &old.NetworkSettings
		n.EndpointID, n.Gateway, n.IPAddress, n.IPPrefixLen = ep.EndpointID, ep.Gateway, ep.IPAddress, ep.IPPrefixLen
		n.GlobalIPv6Address, n.GlobalIPv6PrefixLen, n.IPv6Gateway = ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen, ep.IPv6Gateway
		n.MacAddress = ep.MacAddress
	}
	return old
}

// withShortAliases adds the container's short ID and host name to the aliases
// on user-defined networks, where API 1.44 and below had them.
func withShortAliases(r *container.InspectResponse) {
	nets := make(map[string]*network.EndpointSettings, len(r.NetworkSettings.Networks))
	for name, ep := range r.NetworkSettings.Networks {
		nets[name] = ep
		if ep == nil || !container.NetworkMode(name).IsUserDefined() {
			continue
		}
		ep = ep.Copy()
		add := []string{r.ID[:min(len(r.ID), 12)]}
		if r.Config != nil && r.Config.Hostname != "" {
			add = append(add, r.Config.Hostname)
		}
		for _, a := range add {
			if !slices.Contains(ep.Aliases, a) {
				ep.Aliases = append(ep.Aliases, a)
			}
		}
		nets[name] = ep
	}
	ns := *r.NetworkSettings
	ns.Networks = nets
	r.NetworkSettings = &ns
}
