<?php

declare(strict_types=1);

namespace App\Http;

/** Laravel's, under the name that all versions have. */
class VerifyCsrfToken extends \Illuminate\Foundation\Http\Middleware\VerifyCsrfToken {}
