// What pages do beyond plain HTML; every page works without it.
"use strict";
