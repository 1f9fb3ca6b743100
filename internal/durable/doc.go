// Package durable writes files so that a crash at any instant leaves the old
// content or the new, never a part: write a temporary file in the same
// directory, fsync it, rename it, fsync the directory.
package durable
