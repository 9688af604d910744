<?php

declare(strict_types=1);

namespace App\Exceptions;

class Handler extends \Illuminate\Foundation\Exceptions\Handler {}
