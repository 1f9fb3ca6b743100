//go:build linux

package api

import (
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
)

// info149 is what /info gave up to API 1.49.
type info149 struct {
	*system.Info
	BridgeNfIptables  bool
	BridgeNfIp6tables bool
}

// info148 is that of up to API 1.48, where a component's commit came with the
// one that was expected.
type info148 struct {
	info149
	ContainerdCommit commit148
	RuncCommit       commit148
	InitCommit       commit148
}

type commit148 struct{ ID, Expected string }

// info146 is that of up to API 1.46.
type info146 struct {
	info148
	RegistryConfig registry146
}

type registry146 struct {
	*registry.ServiceConfig
	AllowNondistributableArtifactsCIDRs     []string
	AllowNondistributableArtifactsHostnames []string
}

// shapeInfo returns what to encode for info.
func shapeInfo(info system.Info, v version) any {
	if info.Labels == nil {
		info.Labels = []string{}
	}
	if info.SecurityOptions == nil {
		info.SecurityOptions = []string{}
	}
	if info.Swarm.LocalNodeState == "" {
		info.Swarm.LocalNodeState = swarm.LocalNodeStateInactive
	}
	if info.RegistryConfig == nil {
		info.RegistryConfig = &registry.ServiceConfig{}
	}
	if v < v1(44) {
		rts := make(map[string]system.RuntimeWithStatus, len(info.Runtimes))
		for k, rt := range info.Runtimes {
			rts[k] = system.RuntimeWithStatus{Runtime: rt.Runtime}
		}
		info.Runtimes = rts
		info.CDISpecDirs = nil
	}
	if v < v1(46) {
		info.Containerd = nil
	}
	if v < v1(49) {
		info.FirewallBackend = nil
	}
	if v >= v1(50) {
		return info
	}
	info.DiscoveredDevices = nil
	i149 := info149{Info: &info}
	if v >= v1(49) {
		return i149
	}
	i148 := info148{i149,
		commit148{info.ContainerdCommit.ID, info.ContainerdCommit.ID},
		commit148{info.RuncCommit.ID, info.RuncCommit.ID},
		commit148{info.InitCommit.ID, info.InitCommit.ID},
	}
	if v >= v1(47) {
		return i148
	}
	return info146{i148, registry146{ServiceConfig: info.RegistryConfig}}
}

// message151 is an event up to API 1.51: the fields of before API 1.22 are
// there too, which clients up to docker 24 fail without.
type message151 struct {
	events.Message
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
}

// shapeEvent returns what to encode for an event, nil for one that the version
// does not know.
func shapeEvent(m events.Message, v version) any {
	if v < v1(46) && m.Type == events.ImageEventType && m.Action == events.ActionCreate {
		return nil
	}
	if v >= v1(52) {
		return m
	}
	old := message151{Message: m}
	switch m.Type {
	case events.ContainerEventType:
		old.Status, old.ID, old.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
	case events.ImageEventType:
		old.Status, old.ID = string(m.Action), m.Actor.ID
	}
	return old
}
