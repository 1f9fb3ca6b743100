// Package cgroup makes, limits, measures and removes cgroups of version 2.
//
// A Tree is the parent below which each container gets a directory of its own.
// All writes go through directory descriptors, a controller is enabled once
// per parent, and only limits that are asked for are written. It knows the
// kernel's files and the OCI runtime-spec's resources, and nothing of
// containers. Source: Linux Documentation/admin-guide/cgroup-v2.rst.
package cgroup
