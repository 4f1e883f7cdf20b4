"""The world behind the Grid: radio links, devices, energy and a virtual clock."""
