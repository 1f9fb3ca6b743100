// Command mkimage builds the image of dhow's machine; see dhow/vmimage.
package main
