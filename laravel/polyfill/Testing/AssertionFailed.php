<?php

declare(strict_types=1);

namespace Realtime\Testing;

/** An assertion of {@see Fake} did not hold, and PHPUnit is not loaded. */
class AssertionFailed extends \AssertionError {}
