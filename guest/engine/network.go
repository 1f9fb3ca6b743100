//go:build linux

package engine

import (
	"context"
	"net/netip"
	"strings"

	apinet "github.com/moby/moby/api/types/network"

	"dhow/internal/errdefs"
)

// findNetwork finds a network by name, ID or prefix of one; nil where there is
// none.
func (e *Engine) findNetwork(nameOrID string) *NetworkInfo {
	if e.o.Network == nil || nameOrID == "" {
		return nil
	}
	list := e.o.Network.Networks()
	for i := range list {
		if list[i].Name == nameOrID || list[i].ID == nameOrID {
			return &list[i]
		}
	}
	for i := range list {
		if strings.HasPrefix(list[i].ID, nameOrID) {
			return &list[i]
		}
	}
	return nil
}

// NetworkList lists the networks that the filters let through.
func (e *Engine) NetworkList(ctx context.Context, f Filters) ([]apinet.Inspect, error) {
	if err := f.check("dangling", "driver", "id", "label", "name", "scope", "type"); err != nil {
		return nil, err
	}
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return nil, err
	}
	list := []apinet.Inspect{}
	if e.o.Network == nil {
		return list, nil
	}
	for _, n := range e.o.Network.Networks() {
		builtin := n.Name == apinet.NetworkBridge || n.Name == apinet.NetworkHost || n.Name == apinet.NetworkNone
		kind := "custom"
		if builtin {
			kind = "builtin"
		}
		if !f.match("name", n.Name) || !f.match("id", n.ID) || !f.exact("driver", n.Driver) || !f.exact("scope", n.Scope) ||
			!f.exact("type", kind) || !f.labels("label", nil) {
			continue
		}
		in := e.networkInspect(n)
		if len(f["dangling"]) > 0 && dangling != (!builtin && len(in.Containers) == 0) {
			continue
		}
		list = append(list, in)
	}
	return list, nil
}

// NetworkInspect tells about one network.
func (e *Engine) NetworkInspect(ctx context.Context, nameOrID string) (apinet.Inspect, error) {
	n := e.findNetwork(nameOrID)
	if n == nil {
		return apinet.Inspect{}, errdefs.New(errdefs.NotFound, "network %s not found", nameOrID)
	}
	return e.networkInspect(*n), nil
}

func (e *Engine) networkInspect(n NetworkInfo) apinet.Inspect {
	in := apinet.Inspect{
		Network: apinet.Network{
			Name: n.Name, ID: n.ID, Created: n.Created, Scope: n.Scope, Driver: n.Driver, EnableIPv4: true,
			IPAM:    apinet.IPAM{Driver: "default", Config: []apinet.IPAMConfig{}},
			Options: map[string]string{}, Labels: map[string]string{},
		},
		Containers: map[string]apinet.EndpointResource{},
	}
	if p, err := netip.ParsePrefix(n.Subnet); err == nil {
		c := apinet.IPAMConfig{Subnet: p}
		c.Gateway, _ = netip.ParseAddr(n.Gateway)
		in.IPAM.Config = append(in.IPAM.Config, c)
	}
	for _, b := range e.all() {
		b.mu.Lock()
		ep, name := b.endpoint, b.rec.Name
		b.mu.Unlock()
		if ep == nil || ep.NetworkID != n.ID {
			continue
		}
		r := apinet.EndpointResource{Name: name, EndpointID: ep.EndpointID}
		_ = r.MacAddress.UnmarshalText([]byte(ep.MacAddress))
		if a, err := netip.ParseAddr(ep.IPAddress); err == nil {
			r.IPv4Address = netip.PrefixFrom(a, ep.IPPrefixLen)
		}
		in.Containers[b.id] = r
	}
	return in
}
