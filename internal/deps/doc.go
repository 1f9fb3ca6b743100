// Package deps names modules that only come into use on another system or by
// another program of the tree.
package deps
