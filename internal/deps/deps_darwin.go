package deps

import _ "github.com/Code-Hex/vz/v3"
