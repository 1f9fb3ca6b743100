// Package ipam hands out the addresses of one subnet. It is pure: it knows no
// kernel and no clock. The Manager of guest/network is its caller, and
// serializes its calls.
package ipam
