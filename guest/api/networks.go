//go:build linux

package api

import (
	"net/http"

	"dhow/internal/errdefs"

	"github.com/moby/moby/api/types/network"
)

func (s *server) networkList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	list, err := s.Networks.NetworkList(c.ctx(), f)
	if err != nil {
		return err
	}
	for i := range list {
		shapeNetwork(&list[i], c.version)
	}
	if c.version < v1(28) { // whole networks, with their containers
		if list == nil {
			list = []network.Inspect{}
		}
		return c.json(http.StatusOK, list)
	}
	sum := make([]network.Summary, len(list))
	for i := range list {
		sum[i] = network.Summary{Network: list[i].Network}
	}
	return c.json(http.StatusOK, sum)
}

func (s *server) networkInspect(c *call) error {
	n, err := s.Networks.NetworkInspect(c.ctx(), c.name)
	if err != nil {
		return err
	}
	shapeNetwork(&n, c.version)
	return c.json(http.StatusOK, n)
}

// networkRemove refuses: all networks there are yet are built in.
func (s *server) networkRemove(c *call) error {
	n, err := s.Networks.NetworkInspect(c.ctx(), c.name)
	if err != nil {
		return err
	}
	return errdefs.New(errdefs.Denied, "%s is a pre-defined network and cannot be removed", n.Name)
}

// networkPrune has nothing to do: the built-in networks stay.
func (s *server) networkPrune(c *call) error {
	if _, err := c.filters(); err != nil {
		return err
	}
	return c.json(http.StatusOK, network.PruneReport{NetworksDeleted: []string{}})
}

// shapeNetwork shapes a network, in place.
func shapeNetwork(n *network.Inspect, v version) {
	if n.Containers == nil {
		n.Containers = map[string]network.EndpointResource{}
	}
	if n.Options == nil {
		n.Options = map[string]string{}
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	if n.IPAM.Config == nil {
		n.IPAM.Config = []network.IPAMConfig{}
	}
	if v < v1(52) {
		n.Status = nil
	}
}
