//go:build linux

package agent

import (
	"testing"

	proto "dhow/proto/control"
)

func TestHostGatewayIsWhatTheHostOffers(t *testing.T) {
	for name, c := range map[string]struct {
		boot *proto.Boot
		addr string
		none bool
		fail bool
	}{
		"plain Linux":    {nil, "invalid IP", false, false},
		"no network":     {&proto.Boot{}, "invalid IP", true, false},
		"not allowed":    {&proto.Boot{Network: &proto.Network{Gateway: "192.168.127.1"}}, "invalid IP", true, false},
		"allowed":        {&proto.Boot{Network: &proto.Network{Host: "192.168.127.254"}}, "192.168.127.254", false, false},
		"not an address": {&proto.Boot{Network: &proto.Network{Host: "x"}}, "invalid IP", false, true},
	} {
		addr, none, err := (&agent{Options: Options{Boot: c.boot}}).hostGateway()
		if addr.String() != c.addr || none != c.none || c.fail != (err != nil) {
			t.Errorf("%s: %v %v %v", name, addr, none, err)
		}
	}
}
